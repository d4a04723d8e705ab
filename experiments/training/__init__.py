"""What the mains share: training, reports and progress."""
