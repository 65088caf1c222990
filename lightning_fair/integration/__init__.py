"""The Lightning side: callback, mixin and data module."""
