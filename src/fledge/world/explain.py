"""Short definitions of machine-learning and everyday terms."""

import random
from dataclasses import dataclass

from fledge.world.lexicon import WORDS, is_a_sentence
from fledge.world.phrases import phrase_book, vary
from fledge.world.records import QUESTION, TRAIN, Item, user
from fledge.world.world_seed import WorldSeed


@dataclass(frozen=True)
class Term:
    """A term with its definition in both languages. The English name includes its article."""

    zh: str
    en: str
    zh_text: str
    en_text: str

    def named(self, lang: str) -> str:
        """The term as it appears in a question."""
        return self.zh if lang == "zh" else self.en

    def text(self, lang: str) -> str:
        """The definition."""
        return self.zh_text if lang == "zh" else self.en_text


TERMS = (
    Term("人工智能", "artificial intelligence", "人工智能让机器学会做事。", "Artificial intelligence is machines that learn."),
    Term("模型", "a model", "模型是从数据里学会规律的程序。", "A model is a program that learns from data."),
    Term("训练", "training", "训练就是用数据一步步改参数。", "Training changes the parameters step by step."),
    Term("数据", "data", "数据是用来学习的例子。", "Data is the examples used for learning."),
    Term("词元", "a token", "词元是模型读写的小块文字。", "A token is a small piece of text."),
    Term("词表", "a vocabulary", "词表是全部词元的清单。", "A vocabulary is the list of all tokens."),
    Term("损失", "the loss", "损失说明模型错了多少。", "The loss says how wrong a model is."),
    Term("梯度", "a gradient", "梯度指出损失变大的方向。", "A gradient shows where the loss goes up."),
    Term("参数", "a parameter", "参数是模型里可以调的数。", "A parameter is a number inside a model."),
    Term("学习率", "the learning rate", "学习率是每一步走多远。", "The learning rate is how far each step goes."),
    Term("过拟合", "overfitting", "过拟合是只会背题不会新题。", "Overfitting is learning by heart."),
    Term("神经网络", "a neural network", "神经网络是一层层相连的小计算。", "A neural network is layers of small sums."),
    Term("注意力", "attention", "注意力让模型看重要的词。", "Attention lets a model look at the words that matter."),
    Term("微调", "fine-tuning", "微调是用少量数据接着训练。", "Fine-tuning is more training on a few examples."),
    Term("奖励", "a reward", "奖励告诉模型做得好不好。", "A reward tells a model how well it did."),
    Term("验证集", "a validation set", "验证集是留着检查模型的数据。", "A validation set is data for checking."),
    Term("批次", "a batch", "批次是一起训练的几个例子。", "A batch is a few examples trained together."),
    Term("雨", "rain", "雨是从云里落下的水滴。", "Rain is drops that fall from clouds."),
    Term("彩虹", "a rainbow", "彩虹是雨后天上的七色光。", "A rainbow is coloured light after rain."),
    Term("时钟", "a clock", "时钟是看时间的东西。", "A clock is a thing that shows the time."),
    Term("地图", "a map", "地图是画着道路和城市的图。", "A map is a picture of roads and cities."),
    Term("图书馆", "a library", "图书馆是可以借书的地方。", "A library is a place to borrow books."),
    Term("冰", "ice", "冰是冻硬的水。", "Ice is water that is frozen hard."),
    Term("影子", "a shadow", "影子是光被挡住的地方。", "A shadow is a place where light is blocked."),
    Term("桥", "a bridge", "桥是让人过河的路。", "A bridge is a road over a river."),
)
BOOK = phrase_book(
    "explain",
    (
        (
            "什么是{x}？",
            "{x}是什么？",
            "解释一下{x}。",
            "{x}是什么意思？",
            "说说什么是{x}。",
            "请解释{x}。",
            "我想知道{x}是什么。",
        ),
        ("请说说{x}是什么。", "请解释一下什么是{x}。", "我想知道{x}是什么意思。"),
    ),
    (
        (
            "What is {x}?",
            "Explain {x}.",
            "What does {x} mean?",
            "Tell me what {x} is.",
            "Please explain {x}.",
            "Can you explain {x}?",
            "I want to know what {x} is.",
        ),
        ("Please tell me what {x} is.", "Can you tell me what {x} is?", "Please explain what {x} is."),
    ),
)
NOUN_SHARE = 0.2  # questions like 'what is a cat': trained here, scored in follow_up and system


def draw(rng: random.Random, world: WorldSeed, lang: str, split: str) -> Item:
    """A random request for a definition. Its key is the term and the phrasing."""
    while True:
        phrase = BOOK[lang].choose(rng, split)
        if split == TRAIN and rng.random() < NOUN_SHARE:
            noun = rng.choice(WORDS)
            name, answer = noun.zh if lang == "zh" else noun.with_article(), is_a_sentence(noun, lang)
        else:
            term = rng.choice(TERMS)
            name, answer = term.named(lang), term.text(lang)
        key = f"{name}|{phrase.text}"
        if split == QUESTION or world.fits_split(split, "explain", key):
            text = vary(rng, phrase.text.format(x=name), lang)
            return Item(
                task="explain",
                lang=lang,
                key=key,
                phrase=phrase,
                messages=(user(text),),
                reference=answer,
                answer_lang=lang,
                details={"term": name},
            )
