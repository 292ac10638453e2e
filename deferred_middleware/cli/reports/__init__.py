"""The commands for reports: failures, functions, queue.yaml and cron.yaml."""
