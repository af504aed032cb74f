"""Which notebook runs when, and with which parameters: Snakemake is the graph, papermill the executor."""
