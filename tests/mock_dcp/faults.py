"""What can go wrong on the mocked DCP, when it is told to."""
import random

FAULTS = {
    'die': 'a worker dies while it computes the slice',
    'return': 'a worker gives the slice back before it has computed it',
    'twice': 'a slice is computed, and its result posted, twice',
    'lose-answer': 'a result is posted, but its answer gets lost, so that the slice is given back',
    'no-answer': 'the scheduler is lost as soon as the job is submitted, and never answers',
    'late': 'the scheduler takes the job 3 s late: until then it does not know it',
    'no-funds': 'the scheduler says that the account has run out of funds',
    'cancel': 'the scheduler cancels the job when it gets the result',
    'lost': 'the scheduler is lost after the first result: it never hears nor says anything more',
    'away': 'the scheduler is lost after the first result, and comes back after 3 s: nothing is lost',
}
DELAY = 3    # seconds, of late and away


class Faults:
    """Decides from a seed which faults happen: the same to the same slices, in whatever order they come."""

    def __init__(self, probabilities, seed):
        self.probabilities, self.seed, self.chances = probabilities, seed, {}

    def happens(self, fault, slice_number=0):
        new_chance = random.Random(f'{self.seed} {fault} {slice_number}')
        chance = self.chances.setdefault((fault, slice_number), new_chance)
        return chance.random() < self.probabilities.get(fault, 0)
