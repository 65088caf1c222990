"""The control law: from the class mix that was trained on to the class mix of the next batch."""
