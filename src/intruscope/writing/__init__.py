"""The one way out: every checkpoint and adapter that Intruscope writes leaves through here.

``folder`` claims an output folder, fills it, and puts the manifest in last. ``checkpoint`` copies a model
with some tensors replaced. ``lora`` turns factors into a PEFT adapter, with the names that ``modules`` and
``naming`` find and the tensors that ``rest`` saves whole. Knows no verb and computes no update.
"""
