"""Run by hand: pre-train the backbone that ships, rehearse a failover, check DVC's cache, draw the axes."""
