"""Reads QONNX files and models as they run, and judges them. Shares no code with what it judges.

**What is not known to be harmless is not proven.** Every rule here follows from it:

- Lists say what is allowed, never what is forbidden: operators with their attributes, versions,
  domains and optional inputs (`graph.operators`), local functions and subgraphs
  (`certificate.hidden`), and the calls that a live model makes (`certificate.outside`). What is on
  no list ends what is known of a tensor, or becomes an entry by name that is not proven.
- A file that two readers may understand differently is refused by name (`graph.doubts`), or
  bounded for both readings.
- What a proof takes from the caller or from the file without checking it is an assumption, and
  every certificate prints its assumptions.
- A file is given memory and work in proportion to its size, before either is spent
  (`graph.budget`, `emulator.allowance`), and whatever it provokes is one of our exceptions.
- Claims are integer arithmetic. `benchmarks/proof_fuzz.py` executes random graphs by other
  people's code and adds up their products by itself; tests/proof/attacks holds the attacks by hand.
"""
