"""The pages of the documentation, and what runs and checks their blocks of code."""
