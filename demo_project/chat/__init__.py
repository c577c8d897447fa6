"""The only app of the demo: chat rooms and the assistant."""
