"""Reports for people and programs: failures, figures, queue.yaml, cron.yaml, and what the SDK's services hold."""
