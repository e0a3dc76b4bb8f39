"""Stage 2: re-training the classifier on frozen features.

Start with `retrain.reference`, which trains one run at a time in plain PyTorch. `retrain.fused` is the engine that is
used in practice; it trains many runs in one batched loop and is tested against the reference.

A *pack* is one Ray Tune trial: runs that are trained together by one call of an engine. A *lane* is one run inside the
batched training loop. A *stack* is the lanes that share one set of tensors.
"""
