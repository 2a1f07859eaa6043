"""What developers time and compare with; not installed."""
