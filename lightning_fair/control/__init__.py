"""The control law: what was trained on goes in, the class mix of the next batch comes out."""
