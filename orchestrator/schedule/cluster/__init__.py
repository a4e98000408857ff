"""Where attempts run: Ray (the only folder that imports it), or a cluster in virtual time."""
