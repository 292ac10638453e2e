"""What the store keeps besides tasks."""
