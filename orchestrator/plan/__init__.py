"""What a command line means: typed configuration, sweep, expansion, identity. Pure: runs nothing.

::

    overrides -> sweep (axes, zip, exclude) -> compose (Hydra) -> trials -> Plan
"""
