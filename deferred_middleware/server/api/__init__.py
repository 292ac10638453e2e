"""What the SDK in an app calls: ``POST /rpc_http``."""
