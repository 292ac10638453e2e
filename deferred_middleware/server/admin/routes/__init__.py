"""The routes of the JSON API, and its description in OpenAPI."""
