"""Cryo-EM maps: preparing them, half maps, and the state that a map shows: sampled, refined, judged."""
