"""From labelled films to a verified candidate, unattended: ``carina rebuild``.

A rebuild is a row in the database and a folder. It goes through :data:`trainer.rebuild.run.STAGES` one by one; the
row says which one it is at, and every stage may be done again. So whoever dies over it, the next start goes on.
"""
