"""Answers the API calls that the SDK in an app makes (``POST /rpc_http``)."""
