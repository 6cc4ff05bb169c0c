"""Sources, partitions and populations: which examples there are, and which client owns them. Host-side numpy throughout."""
