"""What a server tells of itself: metrics, and the log's form."""
