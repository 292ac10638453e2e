"""What every page needs: routes, requests, templates, live updates, and protection."""
