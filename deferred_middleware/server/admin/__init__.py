"""Shows and changes tasks and queues for people: the JSON API, its guard, and payloads as text."""
