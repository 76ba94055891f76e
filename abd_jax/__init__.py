"""Anti-backdoor data-free knowledge distillation in JAX."""
