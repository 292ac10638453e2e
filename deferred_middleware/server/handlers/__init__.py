"""What App Engine's front end does with the handlers of ``app.yaml``: static files and logins, in front of an app."""
