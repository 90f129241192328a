"""Prompts of the calibration: thresholds are chosen on TUNING and reported on REPORT.

Questions, code, lists, other languages, long texts and conversations, written for this purpose. No
prompt stands in both sets. A tuple is a conversation: turns of the user and the assistant in turn.
"""

from __future__ import annotations

from typing import Final, TypeAlias

Prompt: TypeAlias = str | tuple[str, ...]

_LETTER: Final = """Dear neighbours,

as most of you know, the old lime tree between houses 14 and 16 lost a large branch in last week's
storm. Nobody was hurt, but a bicycle shed was damaged and the path was closed for two days. The
city's gardener has looked at the tree. She says that it is between ninety and one hundred and
twenty years old, that its trunk is hollow up to a height of about two metres, and that it could
nevertheless stand for decades if the crown is cut back and two steel cables are put in. The work
would cost 3,400 euros. The city pays half of it, because the tree is listed. The other half would
have to be paid by us, which comes to 85 euros for each of the twenty flats. Felling it would cost
less, about 1,100 euros in all, but needs a permit that takes at least four months. Until a
decision is made the path stays open only by day. Please come to the meeting on Thursday at seven
in the evening in the laundry room and bring your questions.

Kind regards, Martha Olsen
"""
_LOG: Final = """2031-04-02 06:12:09 pump-3 started, intake 4.1 bar
2031-04-02 06:12:44 pump-3 intake 3.9 bar
2031-04-02 06:14:02 pump-1 stopped by timer
2031-04-02 06:20:31 valve-7 reports position 40, ordered 60
2031-04-02 06:20:36 valve-7 reports position 41, ordered 60
2031-04-02 06:21:10 pump-3 intake 3.2 bar
2031-04-02 06:22:55 alarm: low intake pressure on pump-3
2031-04-02 06:23:01 operator acknowledged
2031-04-02 06:23:40 valve-7 ordered 80, reports 41
2031-04-02 06:25:12 pump-3 stopped by protection, intake 2.4 bar
2031-04-02 06:25:50 pump-1 started by operator
2031-04-02 06:31:07 valve-7 moved by hand to 75
2031-04-02 06:33:20 pump-3 started, intake 4.0 bar
"""
_STORY: Final = """The ferry had been late every day that week, and on Friday it did not come at all. Ilse sat on the
harbour wall with her two suitcases and watched the gulls quarrel over a crust. A man in a blue
coat came along the quay, stopped, and asked whether she was waiting for somebody. For the ferry,
she said. He laughed, not unkindly. The ferry, he said, was in the yard on the mainland and would
be there until Tuesday; hadn't they told her at the post office? They had not. He looked at the
suitcases, then at the sky, which had the colour of slate, and said that his sister let rooms.
Ilse thought of the letter in her pocket, which named a day and an hour, and of the people in the
city who would wait for her at a long table. Then the first drops fell, large and warm.
"""
_RECIPE: Final = """Flatbread with spinach. For the dough: 300 g flour, 180 ml lukewarm water, 7 g dry yeast, one
teaspoon of salt, two tablespoons of olive oil. For the filling: 400 g spinach, one onion, two
cloves of garlic, 150 g sheep's cheese, nutmeg, pepper. Dissolve the yeast in the water, add flour,
salt and oil, knead for ten minutes and let it rise for one hour in a warm place. Wash the spinach,
let it collapse in a hot pan, press the water out and chop it. Fry onion and garlic until they are
golden, mix with the spinach, crumble the cheese over it and season. Divide the dough into four
pieces, roll them thin, put a quarter of the filling on one half of each, fold and press the edges
together. Bake in a dry pan for about four minutes on each side.
"""
_CODE: Final = """def merge(left, right):
    result = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] < right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result
"""
_TABLE: Final = """station,month,rain_mm,mean_c
Aldern,January,61,1.2
Aldern,April,38,8.9
Aldern,July,74,18.4
Aldern,October,55,9.7
Brink,January,102,-2.5
Brink,April,71,4.1
Brink,July,133,13.0
Brink,October,96,5.2
Cove,January,44,6.8
Cove,April,29,11.3
Cove,July,8,21.9
Cove,October,63,15.4
"""
_RULES: Final = """Rules of the reading room. Bags and coats go into the lockers. Pencils only; ink is not allowed at
the tables. At most three volumes may be on a table at a time. Volumes printed before 1800 stay on
the foam wedges and are opened no further than these allow. Photographs without flash are free of
charge up to fifty pages a day; more need a form signed by the librarian at the desk. Orders placed
before eleven are fetched by two in the afternoon, later ones the next morning. Who leaves for more
than thirty minutes returns the volumes to the desk. Food, drink and telephone calls are for the
hall. The room closes at six, on Thursdays at eight.
"""

TUNING: Final[tuple[Prompt, ...]] = (
    "What makes a rainbow?",
    "Why do leaves change colour in autumn?",
    "How does a refrigerator keep things cold?",
    "Who wrote the Brandenburg Concertos, and for whom?",
    "What is the difference between a virus and a bacterium?",
    "Explain inflation to a twelve-year-old.",
    "How far is the Moon from the Earth?",
    "What does a notary do?",
    "Write a Python function that reverses the words of a sentence.",
    "Write a SQL query that finds the three customers with the highest total of orders.",
    "Show me a C function that counts the set bits of an unsigned integer.",
    "Write a shell command that finds all files over 100 MB below the current directory.",
    "Write a JavaScript function that debounces another function.",
    f"Find the mistake in this function:\n\n{_CODE}",
    "List ten vegetables that grow in winter.",
    "Give me five names for a bakery by the sea.",
    "List the planets with their number of moons.",
    "Name eight ways to save water at home, one line each.",
    "Give a packing list for three days of hiking.",
    "¿Cuál es la capital de Australia y por qué no es Sídney?",
    "Pourquoi le ciel est-il bleu ?",
    "Schreibe ein kurzes Gedicht über einen Regentag.",
    "Qual é a diferença entre clima e tempo?",
    "Wat is het verschil tussen een meer en een vijver?",
    "日本の首都について教えてください。",
    "Напиши короткую историю о коте.",
    f"Summarise this letter in two sentences:\n\n{_LETTER}",
    f"What went wrong at the pumping station?\n\n{_LOG}",
    f"Continue this story:\n\n{_STORY}",
    f"Which decisions does this letter leave open?\n\n{_LETTER}",
    ("Hi, I'm Ana.", "Hello Ana! How can I help you today?", "What was my name again?"),
    ("Name a fruit.", "Apple.", "Another one.", "Pear.", "And one that is yellow?"),
    ("What is 12 times 12?", "12 times 12 is 144.", "And half of that?"),
    (
        "Tell me a joke.",
        "Why did the chicken cross the road? To get to the other side.",
        "Explain why that is funny.",
    ),
    ("Translate 'good morning' to French.", "Bonjour.", "And to Italian, German and Polish?"),
    "Describe the taste of a lemon without the word sour.",
    "Write the opening line of a detective novel.",
    "Compose a polite email that declines an invitation to a wedding.",
    "Argue against school uniforms in three sentences.",
    "If all bloops are razzies and some razzies are lazzies, are all bloops lazzies?",
)

REPORT: Final[tuple[Prompt, ...]] = (
    "How do bees find their way home?",
    "What is the longest river of Africa?",
    "Why does bread rise?",
    "What happens in the heart during one beat?",
    "How is glass made?",
    "What did the Rosetta Stone help to decipher?",
    "Why are there leap years?",
    "How does a mortgage work?",
    "What is the difference between weight and mass?",
    "Who was Ada Lovelace?",
    "How do vaccines train the immune system?",
    "Why do we dream?",
    "Write a Python class for a stack with push, pop and peek.",
    "Write a regular expression that matches a date like 2031-04-02, and explain it.",
    "Write a Java method that tells whether a string is a palindrome.",
    "Show a CSS rule that centres a box in the middle of the page.",
    "Write a Rust function that returns the largest number of a slice.",
    "How do I undo the last commit in git but keep the changes?",
    f"Does this function lose elements? Give an example.\n\n{_CODE}",
    "Write a Dockerfile for a small web server in Python.",
    "Write an SQL statement that adds a column with a default value.",
    "List seven famous bridges and the cities where they stand.",
    "Give me a shopping list for pancakes for six people.",
    "Name ten English words of Arabic origin.",
    "List the steps to change a bicycle tube.",
    "Give six questions for a job interview with a gardener.",
    "Name five board games for two players, with one sentence each.",
    "List the layers of the atmosphere from the ground up.",
    "Give me twelve rhymes for the word light.",
    "¿Cómo se hace una tortilla de patatas?",
    "Escribe un haiku sobre el mar.",
    "Quelle est la différence entre un alligator et un crocodile ?",
    "Raconte une courte histoire d'un phare.",
    "Was ist ein Schaltjahr?",
    "Nenne fünf Flüsse in Deutschland.",
    "Come funziona una pila elettrica?",
    "Como se diz obrigado em cinco línguas?",
    "请用一句话介绍长城。",
    "Почему море солёное?",
    "Jak upiec chleb w domu?",
    f"Write a shopping list for this recipe:\n\n{_RECIPE}",
    f"Rewrite this recipe as numbered steps:\n\n{_RECIPE}",
    f"Which station is the warmest in July, and which has the most rain?\n\n{_TABLE}",
    f"Turn this table into three sentences:\n\n{_TABLE}",
    f"May I take photographs here, and how many?\n\n{_RULES}",
    f"Write these rules for children of eight years:\n\n{_RULES}",
    f"{_RULES}\n{_RECIPE}\n{_TABLE}\nWhat do these three texts have in common?",
    (
        "My dog is called Bruno.",
        "What a nice name! How old is Bruno?",
        "He is three. What food would you give him?",
    ),
    ("Give me a number between 1 and 10.", "7.", "Double it.", "14.", "Add the first number."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted it.", "When, and where is it now?"),
    ("Suggest a title for a book on bees.", "The Quiet Republic.", "Too solemn. A funnier one?"),
    (
        "I feel tired today.",
        "I'm sorry to hear that. Did you sleep well?",
        "No, the neighbours had a party. What can I do now?",
    ),
    (
        "What is the boiling point of water?",
        "100 degrees Celsius at sea level.",
        "And on a mountain of 3000 metres?",
    ),
    (
        "Let us play a game: I say a word, you say its opposite. Hot.",
        "Cold.",
        "Early.",
        "Late.",
        "Generous.",
    ),
    "Describe a forest at night in the style of a fairy tale.",
    "Write a complaint to a hotel about a noisy air conditioner.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it travel?",
    "Write a limerick about a cat and a piano.",
    "Convince me to read more poetry.",
    "What should a speech at a retirement party contain? Give an outline.",
)
