"""What people see: the JSON API, its guard, and payloads as text."""
