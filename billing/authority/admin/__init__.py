"""The admin plane: tenants, keys, budgets. Plain Django views in a process of their own; money moves in SQL only."""
