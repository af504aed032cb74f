"""What a reader takes away: figures, tables, and the ledger of the papers' claims."""
