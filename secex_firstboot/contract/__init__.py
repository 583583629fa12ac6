"""What image, agent, the owner's tools and the tests agree on, said once. Imports the basics alone."""
