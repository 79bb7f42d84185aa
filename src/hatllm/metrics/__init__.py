"""From ranks to numbers: ranking metrics, their uncertainty, the best validation."""
