"""Pure tensor mathematics: Krylov spaces, certified bounds, low-rank algebra, clusters.

Knows no file and no model. The way in is :func:`intruscope.linalg.analysis.analyse` (one base matrix
and its update -> ``Analysis``); :func:`intruscope.linalg.topk.top_triplets` and
:func:`intruscope.linalg.topk.dense_triplets` give leading singular triplets of any operator.
"""
