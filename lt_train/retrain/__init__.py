"""Re-training engines: the plain reference loop and the fused product."""
