"""Ask/tell objects that propose trials: one file a sampler."""
