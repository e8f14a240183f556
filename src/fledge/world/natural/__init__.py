"""Conversations in the words of people: varied requests, small talk, several turns, and questions outside of the world."""
