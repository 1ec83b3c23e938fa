"""Networks and losses: tensors in, tensors out.

Imports torch alone: nothing of ``train`` or ``shardify``, no file, no data set.
"""
