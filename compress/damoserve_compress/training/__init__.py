"""Training: batches of augmented pictures, losses, distillation, and a loop that goes on where it was stopped."""
