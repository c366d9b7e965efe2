"""Run by hand: pre-train the backbone that ships, rehearse a failover. Nothing imports from here."""
