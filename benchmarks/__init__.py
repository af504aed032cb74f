"""How fast qpatch is beside the bare arithmetic and beside other tools: `./run_all.sh bench`, see `_harness`."""
