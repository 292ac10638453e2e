import os

os.environ["CLOUD_TASKS_EMULATOR_HOST"] = "127.0.0.1:1"  # the clients are made, and call nobody
