"""The tasks that come with crowdsurf, one file each; others are found by their entry point."""
