"""Side chains: from a backbone to all atoms."""
