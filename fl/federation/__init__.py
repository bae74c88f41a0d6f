"""Everything that speaks Flower: server, clients, rounds, checkpoints."""
