"""Per-sample losses over logits `[..., K]`, class priors and class weights."""
