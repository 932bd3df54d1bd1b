"""What a plugin's author fills in or is given: policies, samplers, rewards, objectives, records."""
