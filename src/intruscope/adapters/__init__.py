"""Everything that touches an adapter's insides: adapter folders read as updates of base matrices. May use weights."""
