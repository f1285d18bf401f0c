"""Little stories for small children, as many as you like: the corpus of the bundled toy model.

A generative grammar with a memory. `[one|another]` stands for either text, and may be nested or
empty; `{slot}` is chosen once in a story and stays, so the red ball that is lost is the red ball
that is found; `{Slot}` is the same with a capital; `{spot1}` and `{spot2}` draw from `spot` and
differ; `/` starts a new paragraph. There are some 10^18 stories, of no plot fewer than 10^10.
Everything above `stories` is the grammar; what follows reads it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

# --- Who: a hero and a friend, who differ in pronoun so that "he" and "she" are never in doubt. ---

PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "him", "his", "himself")}
NAMES = {
    "she": "Mia|Lily|Anna|Ella|Nora|Ruby|Zoe|Clara|Ivy|Rosa|Tess|Hana|Leila|Maya|Lucy|Nina|Amara|"
    "Greta|Juno|Freya|Dina|Bella|Molly|Daisy|Poppy|Sara|Emma|Kate|Pearl|Wanda",
    "he": "Tom|Ben|Leo|Sam|Max|Finn|Oscar|Theo|Noah|Eli|Hugo|Jack|Milo|Otto|Ravi|Kofi|Omar|Luca|"
    "Pablo|Ned|Toby|Felix|Arlo|Kenji|Rufus|Gus|Tim|Peter|Henry|Bruno",
}
ANIMALS = {  # and the colours they come in
    "fox": "red|brown|white",
    "rabbit": "brown|white|grey|black",
    "bear": "brown|black|white",
    "mouse": "grey|brown|white",
    "hedgehog": "brown|grey",
    "squirrel": "red|grey|brown",
    "kitten": "black|white|orange|grey",
    "puppy": "brown|black|white|spotted",
    "mole": "black|grey",
    "otter": "brown|grey",
    "badger": "grey|black",
    "hamster": "golden|white|brown",
    "beaver": "brown",
    "raccoon": "grey",
}

# --- What: the words that slots draw from. ---

LEXICON = {
    "trait": "curious|kind|cheerful|merry|busy|gentle|clever|quiet|playful|friendly|helpful|"
    "careful|happy",
    "hobby": "to sing|to dance|to run in the wind|to draw|to climb trees|to collect stones|"
    "to look at the clouds|to splash in puddles|to listen to stories|to pick flowers|"
    "to ask questions|to play by the water|to count the birds|to make new things",
    "weather": "sunny|warm|bright|cool|cloudy|fine",
    "daytime": "morning|afternoon|day",
    "when": "One {weather} {daytime}",
    "soon": "Soon|A little later|Before long|Not long after",
    "parent": "Mama|Papa|Grandma|Grandpa",
    "relative": "Aunt Rosie|Uncle Fred|Aunt Tilly|Uncle Bob|Aunt May|Uncle Jim",
    "friendly": "[good|best|old|dear] friend|friend|friend|neighbour",
    "colour": "red|blue|green|yellow|orange|purple|white|pink|silver|golden|striped",
    "toy": "ball|toy boat|drum|scarf|bell|marble|button|hat|paper crown|whistle|ribbon|"
    "toy horse|spinning top|toy train|teddy bear",
    "fragile": "kite|paper lantern|toy boat|clay pot|music box|puppet|glass bird|toy train",
    "found": "purse|glove|hat|umbrella|key|basket|ring|notebook|scarf|teapot",
    "treat": "apple|pear|bun|cookie|pancake|muffin|honey cake|plum|berry pie|lemon tart|pretzel",
    "food": "[warm|fresh|soft] bread and [honey|jam|butter]|[apple|carrot|honey|nut] cake|"
    "[mushroom|onion|pumpkin] soup|[cherry|berry|peach] pie",
    "vegetable": "carrot|turnip|leek|onion|parsnip|pumpkin|cabbage|mushroom|beetroot",
    "crop": "sunflower|pumpkin|melon|cabbage|rose|tulip|marrow",
    "creature": "beetle|snail|ladybird|bee|butterfly|frog|sparrow|lizard|robin|wren",
    "chick": "duckling|chick|gosling|cygnet",
    "skill": "swim|whistle|skate|jump rope|juggle|stand on {his} head|skip a stone|tie a bow|"
    "do a cartwheel|play the drum|play the flute|catch a ball|row a boat|walk on stilts",
    "craft": "little boat|birdhouse|tree house|wagon|raft|sled|swing|toy castle|bench|windmill",
    "material": "old boards|sticks and string|branches and bark|planks and nails|reeds and rope",
    "missing": "thicker rope|longer nail|wider board|bigger hammer|pot of glue|better knot",
    "monster": "dragon|monster|giant|wolf",
    "den": "ship|castle|cave|train|rocket|tent|submarine|palace",
    "noise": "Tap, tap, tap|Scratch, scratch, scratch|Creak, creak, creak|Bump, bump, bump|"
    "Swish, swish, swish",
    "prize": "the [golden|silver] cup|a [blue|red] ribbon|a basket of [plums|apples|berries|nuts]",
    "clothing": "hat|scarf",
    "place": "the meadow|the pond|the stream|the big hill|the orchard|the old mill|the river|"
    "the edge of the forest|the lake|the windy hill|the wide field",
    "spot": "under the bench|behind the big rock|in the tall grass|under the old oak tree|"
    "under a pile of leaves|behind the gate|beside the well|next to the stone wall|"
    "in the flower bed|under the hedge|behind the barn|beside the bridge|between two roots",
    "child_home": "in a [little|yellow|blue|red|crooked] house [by the sea|on a hill|near the "
    "woods|at the end of the lane|beside a river]|in a small [town|village] [by the sea|near the "
    "mountains|beside a river]|on a [little|quiet|busy] farm",
    "animal_home": "in a [snug|warm|cosy|tiny] [den|burrow|house] [under an [oak|apple] tree|near "
    "a stream|near the forest|beside a pond|under a hill|behind a mossy rock]|deep in the "
    "[green|quiet|old] forest",
    "child_elder": "the baker|the gardener|the old farmer|the teacher|the old fisherman",
    "animal_elder": "the old owl|the old turtle|the old goat|the old toad|the old heron",
}

# --- How it opens. A hero without a name is "the little fox", say, and `{named}` is empty. ---

OPENINGS = (
    "Once upon a time, there was {intro} {named}. {about}",
    "Once upon a time, {intro} {named} lived {home}. {likes}",
    "There once was {intro} {named}. {about}",
    "There once was {intro} {named} who loved {hobby}.",
    "{Home} lived {intro} {named}. {likes}",
)
NAMED_OPENINGS = (
    "{Hero} was {intro} who lived {home}. {likes}",
    "{Hero} was {intro} who loved {hobby}.",
    "{Hero} was {intro}. {about}",
    "{Hero} and {parent} lived {home}. {Hero} was {intro}.",
)
NAMELESS_OPENINGS = (
    "{Hero} lived {home}. {likes}",
    "{Hero} loved {hobby}. [{He} lived {home}.|]",
    "{Hero} was very {trait}. {about}",
    "{Hero} lived with {parent} {home}. {likes}",
)
DATED_OPENINGS = (  # after these, the plot does not say "One sunny morning" again
    "One {weather} morning, {intro} {named} {wake}.",
    "It was a {weather} morning. {Intro} {named} {wake}.",
)
ABOUT = {
    "about": "[{He} lived {home}.|{He} loved {hobby}.|{He} lived {home} and loved {hobby}.]",
    "likes": "[{He} loved {hobby}.|{He} [liked|loved] {hobby}, and {he} was always {trait2}.|]",
    "wake": "opened the door and looked out|looked out of the window and smiled|went out to play|"
    "took a deep breath of fresh air|hummed a little song|was the first one outside",
}

# --- What happens. Each plot opens with a wish or a trouble and ends by resolving it. ---

PLOTS: tuple[tuple[dict[str, str], str], ...] = (
    (  # a thing is lost
        {},
        """{When}, {hero} could not find {his} {colour} {toy}. [It was {his} favourite thing in the
        world.|{Parent} had given it to {him}.|{He} had taken it everywhere.|] {He} looked {spot1}.
        [It was not there.|There was only [a snail|a leaf|an acorn|a feather].] {He} looked {spot2}.
        [It was not there either.|No {toy}!|Nothing.] [/|] [{His} eyes filled with tears.|{He} sat
        down and sighed.|] Then {friend_intro} came by. "[What is wrong|Why are you so sad|What are
        you looking for]?" asked {friend}. "I lost my {colour} {toy}," said {hero}. "[Do not worry.
        |Cheer up. |]I will help you [look|find it]," said {friend}. / [They looked high and
        low.|The two friends looked everywhere.|They looked and looked.] At last, {friend} pointed.
        "[Look|There it is|I see it]!" {fhe} [cried|called]. The {toy} was {spot3}[, a little dirty
        but not broken|, wet and shiny|]! {Hero} [hugged {friend}|jumped for joy|laughed and
        clapped]. [That night, {hero} slept with the {toy} beside {him}.|After that, {he} always
        kept the {toy} [in a safe place|close to {him}].|{He} let {friend} play with the {toy} all
        the way home.]""",
    ),
    (  # a small creature needs help, and gives it back
        {},
        """{When}, {hero} was [walking|skipping] to {place} when {he} heard a [tiny|small|soft]
        voice. [{He} stopped and listened.|"Who is there?" {he} asked.|] There, {spot}, was a
        {creature}, caught in [some string|an old net|a knot of ivy]. "[Please help me|I am stuck|I
        cannot get out]," said the {creature}. [{Hero} was in a hurry, but {he} stopped.|{Hero} knew
        just what to do.|] "[Hold still|Do not be afraid]," {he} said. [Slowly|Carefully|Bit by
        bit], {he} pulled the knots apart. "Thank you! I [am free|will not forget this]," said the
        {creature}. / [The next day|A few days later], {hero} was lost in the [fog|dark forest|tall
        corn]. [Every path looked the same.|{He} called, but nobody came.|{He} wanted to cry.] Then
        {he} heard a tiny voice. "Follow me," it said. It was the {creature}! It [led|showed] {him}
        all the way home. [And from|From] that day on, {hero} and the {creature} were [good|the best
        of] friends.""",
    ),
    (  # learning takes many tries
        {},
        """{When}, {hero} wanted to learn to {skill}. {Friend_intro} could do it, and it looked
        so [easy|much fun]. {He} tried once. [It did not work.|It went all wrong.] {He} tried
        again. [That was even worse.|It was no better.] "[I will never learn|It is too hard|I
        cannot do it]!" said {hero}[, and {he} sat down on the ground|, and a tear ran down
        {his} nose|]. [/|] "I [tried a hundred times|had to try all summer]," said {friend}.
        "[Try a little every day|Take a deep breath and go slowly|Just do not give up]." So
        {hero} tried [every morning|every day|again and again]. [Each time, it went a little
        better.|Sometimes it went well, and sometimes it did not.|] / Then, one
        [evening|day|morning], {he} did it! "Look! I can {skill}!" {he} [called|shouted].
        {Friend} clapped and [cheered|danced]. ["I knew you could," {fhe} said.|] [That night,
        {hero} was too happy to sleep.|{Hero} was so proud that {he} did it [three|ten] more
        times.|After that, {hero} was not afraid to try hard things.]""",
    ),
    (  # sharing
        {},
        """{When}, {parent} gave {hero} [one big|a] {treat}. [It smelled wonderful.|It looked so
        good.|] {He} took it to {place}. There {he} met {friend_intro}, who looked
        [sad|hungry|tired]. "[I forgot my lunch|I dropped my lunch in the water|I have not eaten all
        day]," said {friend}. [/|] {Hero} looked at the {treat}. [It was not very big.|{He} was very
        hungry, too.|{He} wanted to eat it all.] Then {he} looked at {friend} again. {He} broke the
        {treat} in two and gave {friend} the bigger half. "[This is for you|This half is yours|Let
        us share]," {he} said. They sat [on a log|in the grass|under a tree] and ate every crumb. /
        The next day, it was {hero} who had no lunch. {Friend} came [running|along] with something
        behind {fhis} back. "[I made|I brought|I saved] two {treat}s," {fhe} said. "One for you and
        one for me!" [{Hero} smiled from ear to ear.|{Hero} had never tasted anything so good.|"It
        is better to share," said {hero}.]""",
    ),
    (  # afraid in the dark
        {
            "when": "One [dark|windy|quiet] night",
            "soon": "That night",
            "wake": "went out to play and came home after dark",
            "trait": "quiet|gentle|careful|kind",
        },
        """{When}, {hero} could not sleep. {Noise}! Something was at the window. "[What is that|Is
        it a monster|Is it a ghost]?" {he} whispered, and {he} pulled the blanket over {his} head.
        [/|] {Noise}! [{His} heart beat fast.|{He} did not dare to move.|] Then {hero} had a
        thought. "[Maybe it is more afraid than I am|I will take just one little look]," {he} said.
        {He} [lit a candle|took {his} lamp|held {his} pillow tight], walked to the window and looked
        out. / It was only [a branch of the [apple|old oak|cherry] tree, waving in the wind|a
        {creature} that wanted to come in from the cold|the gate, swinging in the wind]. {Hero}
        [laughed at {himself}|laughed out loud] and climbed back into bed. [In the morning|The next
        day], {he} told {parent} all about it. "[You were afraid and you looked anyway. That is
        being brave|Even brave ones are afraid sometimes]," said {parent}. [After that, {hero} liked
        the dark a little better.|After that, {hero} slept well every night.|{Hero} was not afraid
        of the window any more.]""",
    ),
    (  # making something
        {},
        """{When}, {hero} had an idea. "I will build a {craft}," {he} said. {He} gathered {material}
        and worked [for a long time|very hard|until {his} arms hurt]. Then came a loud crack, and
        the {craft} fell apart. [{Hero} groaned.|{Hero} wanted to cry.|"Oh no!" said {hero}.] [/|]
        {Friend_intro} heard the noise. [{Fhe} walked around it [once|twice].|] "You need a
        {missing}," said {friend}. "Wait here!" [Soon|A moment later], {fhe} was back with [it|just
        the right thing]. [/|] The two of them worked side by side. [{Hero} held the pieces, and
        {friend} put them together.|{Friend} sang, and the work went fast.|] This time, the {craft}
        did not break. / "It is the best {craft} in the world," said {friend}. "[I could not have
        made it alone|Two heads are better than one|We made it together]," said {hero}. [{Hero}
        wrote both their names on the side.|{Hero} and {friend} were proud of it.|And {hero} already
        had a new idea.]""",
    ),
    (  # a visit, and something in the way
        {},
        """{When}, {parent} packed a basket with {food}. "Please take this to {relative}," said
        {parent}. {Hero} [set off at once|took the basket and set off]. [A butterfly wanted to
        play, but {he} walked on.|{He} sang all the way to {place}.|] Then {he} had to stop. [A
        fallen tree lay across the path. {Hero} pushed the basket under it and climbed over.|The
        little bridge was broken. {Hero} hopped from stone to stone and did not spill a crumb.|A
        big goose stood on the path and hissed. {Hero} bowed and said, "Please," and the goose
        let {him} pass.] / At last, {he} saw the {colour} door of a little house. "What a
        [lovely|wonderful] surprise!" said {relative}. "[I feel better already|Come in, come
        in]!" They ate {food} and [told stories|sang old songs|played cards] by the fire. When
        it was time to go, {relative} gave {hero} [a flower for {parent}|a jar of jam|a warm
        hug|a shiny button]. [{Hero} promised to come again soon.|{Hero} ran home under the
        first stars.|{Hero} hummed all the way home.]""",
    ),
    (  # a rainy day
        {"weather": "rainy|wet|grey", "wake": "looked out of the window and sighed"},
        """{When}, {hero} wanted to go to {place}, but it rained and rained. [Drip, drop, drip,
        drop.|The rain drummed on the roof.|] "[There is nothing to do|It will never stop|I want to
        play outside]," said {hero}. {Parent} smiled. "[The best games are waiting inside|A rainy
        day is full of games]," said {parent}. So {hero} took [two chairs and a blanket|a big box
        and a broom|all the pillows in the house] and made a {den}. [/|] {Friend_intro} knocked at
        the door, wet from head to toe. "[What are you making|May I play, too|Is that a {den}]?"
        asked {friend}. "[Come in|Hurry, get in]!" said {hero}. They [met a dragon|found a
        treasure|crossed the wide sea|visited the moon|talked to a giant] and were back in time for
        [soup|supper|tea]. / Then the rain stopped, and a rainbow stood over {place}. "Now we can go
        out," said {friend}. "[Not yet|In a minute]," said {hero}[ with a smile|]. "One more trip
        first!\"""",
    ),
    (  # waiting for a seed
        {"trait": "busy|playful|curious|cheerful"},
        """{When}, {parent} gave {hero} a [tiny|small|little] [brown|black|round] seed. "[What will
        it be|What is in it]?" asked {hero}. "Plant it and wait," said {parent}. {He} planted it
        [beside the door|behind the house|by the fence|near the well] and watered it every day.
        [Days went by.|Nothing happened.] "[Is it asleep|Why does it not grow|Did I do it wrong]?"
        asked {hero}. "[It grows where you cannot see|A seed takes its time|Good things take time],"
        said {parent}. [/|] So {he} waited. [{He} sang to the seed.|{He} told the seed a story.|]
        One morning, there was a little green leaf! It grew [and grew|as high as {his} knees|as tall
        as the door]. / By the end of the summer, there was a {crop}[, the finest of them all|].
        {Hero} showed it to {friend_intro}. "How did you do it?" asked {friend}. "[The waiting was
        the hard part|I watered it and waited]," said {hero}. [{He} kept the seeds for next
        year.|{He} gave {friend} a seed to plant.]""",
    ),
    (  # somebody new
        {"trait": "quiet|shy|gentle|careful"},
        """{When}, somebody new came to live near {place}. It was a {friendkind} with a [big
        bag|{colour} hat], and {fhe} sat all alone [under a tree|on a stone|on a log]. {Hero} wanted
        to say hello, but {he} felt shy. [What if {fhe} did not like {him}?|] "How do you make a
        friend?" {he} asked {parent}. "[A smile is a good start|Just be kind|Bring something to
        share]," said {parent}. [/|] So {hero} took a {treat} and walked over. "Hello," {he} said in
        a [small|tiny] voice. "Would you like half of my {treat}?" The {friendkind} looked up and
        smiled. "Yes, please! My name is {friend}," {fhe} said. They ate and talked and
        [played|laughed] until supper. / [The next morning|The next day], {friend} came to ask if
        {hero} could play. [{Hero} was already waiting at the gate.|{Hero} was out of the door at
        once.|{Hero} did not feel shy any more.]""",
    ),
    (  # a birthday that nobody remembers
        {},
        """{When}, {hero} remembered something wonderful. It was {his} birthday! {He} ran to tell
        {friend_intro}. "Do you know what day it is?" asked {hero}. "[It is washing day|It is just a
        day]," said {friend}. "I cannot play now." {He} went to see {elder}. "[I am very busy|Come
        back tomorrow]," said {elder}. [/|] {Hero} walked home [slowly|with {his} head down].
        "[Everybody forgot|Nobody remembered]," {he} said [sadly|softly], and {he} opened the door.
        / "Surprise!" shouted {friend}. "Surprise!" shouted {elder}. {Parent} came in with a {treat}
        as big as a [wheel|chair|drum]. [There were {colour} ribbons everywhere.|] ["Did you think
        we forgot?" asked {friend}.|] {Hero} laughed [and hugged them all|until {he} cried]. [It was
        the best birthday that {hero} had ever had.|{Hero} blew out the candle, but there was
        nothing left to wish for.]""",
    ),
    (  # something is broken, and told
        {},
        """{When}, {hero} went to play with {friend_intro}. {Friend} had a new {colour} {fragile}.
        "[Please be careful|You may hold it]," {fhe} said, and went to get some [juice|milk|water].
        {Hero} [turned it over|held it up high|swung it around], and it slipped. Crack! [A piece
        came off.|It broke in two.] [Nobody had seen it.|{He} could hide it {spot}.] [/|] But [{his}
        tummy felt bad|it did not feel right|{his} heart was heavy]. When {friend} came back, {he}
        took a deep breath. "I broke your {fragile}," {he} said. "I am very sorry." {Friend} was
        quiet for a [moment|long time]. "[Thank you for telling me|It was brave to tell the truth],"
        {fhe} said. "Let us mend it together." / They [found some glue|worked all day|worked
        slowly], and soon the {fragile} was whole. "[I like it even better now|Now we both made
        it]," said {friend}. {Hero} [walked|skipped] home and felt as light as a
        [feather|bird|cloud].""",
    ),
    (  # a kite in a tree
        {"weather": "windy|breezy|blowy"},
        """{When}, {hero} took {his} {colour} kite to {place}. [Up, up, up it went!|The wind was
        just right.|] [It danced like a bird.|It flew higher than the trees.|] Then the string
        slipped, and the kite [flew into|landed in] the tallest tree. {Hero} [jumped, but the branch
        was too high|threw a stick, but the kite did not move|shook the tree, but only leaves came
        down]. [/|] {Friend_intro} came [by|running]. "[Let me climb on your back|I can stand on
        you]," said {friend}. They wobbled to the left, and they wobbled to the right. [They fell
        into the grass and laughed.|] Then {friend} caught the string. "I have it!" {fhe}
        [cried|shouted]. / "You saved it, so you may fly it first," said {hero}. [They took turns
        until [supper|the sun went down].|Up it went again.|] [After that, {hero} never flew the
        kite alone.|From that day on, {hero} and {friend} always flew the kite together.]""",
    ),
    (  # a snowman, and a cold friend
        {"weather": "snowy|frosty|white", "clothing": "hat|scarf"},
        """{When}, {hero} made a snowman near {place}. {He} rolled a big ball and a small ball. {He}
        found two [stones|buttons|nuts] for eyes and a [carrot|stick] for a nose. "[Something is
        missing|He is not ready yet]," said {hero}. "He needs a {clothing}." [/|] {Friend_intro}
        came by in a {colour} {clothing}. "[He can have mine|Take my {clothing}]," {fhe} said, and
        {fhe} put it on the snowman. [Now the snowman looked [grand|very fine|happy].|] But soon
        {friend} began to shiver. [{Fhis} nose turned red.|{Fhis} teeth went click, click.|] /
        {Hero} ran home as fast as {he} could. {He} came back with {his} own [thick|warm|best]
        {clothing} and gave it to {friend}. "[Now nobody is cold|You gave yours, so I give you
        mine]," said {hero}. [That night, the snowman seemed to smile at {hero}.|In the moonlight,
        the snowman seemed to wave at {hero}.]""",
    ),
    (  # a wish on a star
        {
            "when": "One [clear|warm|quiet] night",
            "soon": "That night",
            "wake": "[played|danced|ran about] until dark",
        },
        """{When}, {hero} could not sleep. [{He} turned left, and {he} turned right.|{He} counted
        sheep, but the sheep ran away.|The bed was too warm.|] {He} went out and found {parent} on
        the step. "Let us count the stars," said {parent}. They counted [ten|twenty|a hundred].
        "[Where do the stars go in the day|Do the stars ever sleep]?" asked {hero}. "[They only wait
        for the dark|They sleep while you play]," said {parent}. [/|] Just then, a star fell across
        the sky. "Make a wish," said {parent}. {Hero} closed {his} eyes. {He} wished that
        {friend_intro} would come and play. {He} had not seen {fhim} for [a long time|so many days].
        / In the morning, [there was a knock at the door|somebody called under the window]. It was
        {friend}! "[I saw a falling star, and I thought of you|I dreamed about you]," {fhe} said.
        [{Hero} looked up at the sky and whispered, "Thank you."|{Hero} laughed, because wishes do
        come true sometimes.]""",
    ),
    (  # a race
        {},
        """{When}, there was a race to {place}. {Hero} wanted to win {prize}. "Ready, steady, go!"
        called {elder}. {Hero} ran [like the wind|as fast as {he} could]. [Soon|In no time], {he}
        was in front. Then {he} heard a cry. {Friend_intro} had [tripped over a root|slipped in the
        mud|fallen over a stone]. [/|] But {hero} turned around and ran back. "[Go on|Do not stop]!"
        said {friend}. "[A race is no fun without you|I do not want to win alone]," said {hero}.
        Side by side, they came in last. / But everybody [cheered|clapped]. {Elder} gave them
        {prize} to share. "[Anyone can run fast. It is harder to turn back|It is good to win. It is
        better to be kind]," said {elder}. {Hero} [was happier than any winner|was very proud|smiled
        at {friend}].""",
    ),
    (  # following tracks
        {},
        """{When}, {hero} found [tiny|small|strange] tracks [in the mud|on the path|in the
        sand]. {He} called {friend_intro}. "[Maybe it is|I think it is|It must be] a {monster},"
        said {friend}. "Let us follow them," said {hero}. The tracks went past {place}, around a
        [puddle|tree|stone] and over a [log|bridge]. Then they stopped. [/|] Something moved
        {spot}. [The two friends held their breath.|{Hero} took one step back.|"Oh!" whispered
        {friend}.] Out came a [little|fluffy|wet] {chick}. "Peep," it said[ sadly|]. "It is
        lost," said {hero}. "[We must find its mother|Let us bring it home]." {He} [carried
        it|showed it the way] to [the farm|the old barn|the reeds]. There, the mother was
        calling and calling. [She spread her wings, and the {chick} ran to her.|"Peep!" said the
        {chick}, and it ran to her.] / "That was no {monster}," said {friend}. "No," said
        {hero}. "It was [much better|even better].\"""",
    ),
    (  # soup from next to nothing
        {},
        """{When}, {hero} wanted to make soup, but {he} had only one {vegetable1}. {He} put it into
        the pot. [The soup tasted like water.|It was a very thin soup.|It did not smell of
        anything.] [/|] Then {friend_intro} knocked at the door. "I have only one {vegetable2},"
        said {friend}. "[That is no supper|It is not enough]." "[Come in|Put it into my pot]," said
        {hero}. Soon {elder} came by with one {vegetable3}. "Put it in, too!" said {hero}. [They
        stirred and stirred.|They sang while the pot bubbled.|{Friend} added a little salt.] /
        [Before long|Soon], the whole house smelled [good|wonderful]. There was a big bowl for
        everybody. "[I came with almost nothing, and now I am full|This is the best soup in the
        world]," said {friend}. "[Nobody had enough alone|Each of us had a little]," said {hero},
        "and together it was [plenty|a feast]." [{Hero} washed the pot and smiled.|And so {hero}
        made soup with {friend} every week.|]""",
    ),
    (  # finding what belongs to somebody
        {},
        """{When}, {hero} found a {colour} {found} {spot1}. {He} wanted to keep it. "[But somebody
        must miss it|But it is not mine]," {he} thought. {He} asked {friend_intro}. "Is this your
        {found}?" "No," said {friend}. "[I wish it were|Let us ask around|I will come with you]." So
        they asked [at every door|everyone they met][, but nobody knew it|]. [/|] At last, they saw
        {elder} looking {spot2}. "[I lost something dear to me|I have looked all day]," said
        {elder}[ sadly|]. {Hero} held out the {found}. "[My {found}|You found it]!" cried {elder}.
        "Thank you!" / {Elder} gave them each a {treat}. On the way home, {friend} asked, "Are you
        sad that it is gone?" "No," said {hero}. "[I have something better|Giving it back felt even
        better]." [And {hero} took a big bite.|And {hero} meant it.]""",
    ),
)


def stories(seed: int, count: int) -> Iterator[str]:
    """The first `count` stories of a series that depends on `seed` alone, on every Python."""
    rng = random.Random(seed)
    return (story(rng) for _ in range(count))


def story(rng: random.Random) -> str:
    """One story: 90 to 160 words in one to four paragraphs, which "\\n\\n" separates."""
    changes, plot = rng.choice(PLOTS)
    rules = LEXICON | ABOUT | _cast(rng) | changes
    openings: tuple[str, ...] = OPENINGS
    openings += NAMED_OPENINGS if rules["named"] else NAMELESS_OPENINGS
    if rng.random() < 0.25:
        openings = DATED_OPENINGS
        rules["when"] = rules["soon"]
    text = _Teller(rng, rules).tell(f"{rng.choice(openings)} {plot}")
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("/"))
    return "\n\n".join(paragraphs).replace(" .", ".")


def _cast(rng: random.Random) -> dict[str, str]:
    """The slots that say who the hero and the friend are."""
    pronoun, other = rng.choice((("she", "he"), ("he", "she")))
    slots = {"friend": rng.choice(NAMES[other].split("|"))}
    slots |= zip(("he", "him", "his", "himself"), PRONOUNS[pronoun], strict=True)
    slots |= zip(("fhe", "fhim", "fhis"), PRONOUNS[other], strict=False)
    slots |= {"hero": rng.choice(NAMES[pronoun].split("|")), "named": "named {hero}|called {hero}"}
    if rng.random() < 0.3:
        kinds = {"she": "girl", "he": "boy"}
        slots |= {"friendkind": kinds[other], "friend_intro": "{his} {friendly} {friend}"}
        slots |= {"intro": f"a [little|{{trait}}|{{trait}} little] {kinds[pronoun]}"}
        return slots | {"home": LEXICON["child_home"], "elder": LEXICON["child_elder"]}
    kind = rng.choice(list(ANIMALS))
    slots["friendkind"] = rng.choice([animal for animal in ANIMALS if animal != kind])
    slots["friend_intro"] = "{his} {friendly} {friend} the {friendkind}"
    slots["intro"] = f"a [little|small|{{trait}} little] [{ANIMALS[kind]}|] {kind}"
    if rng.random() < 0.4:  # "the little fox", without a name
        size = rng.choice(("little", "little", "little", "small", "young"))
        slots |= {"hero": f"the {size} {kind}", "named": "", "intro": f"a {size} {kind}"}
    return slots | {"home": LEXICON["animal_home"], "elder": LEXICON["animal_elder"]}


class _Teller:
    """Expands the grammar for one story, and remembers what it has put into the slots."""

    def __init__(self, rng: random.Random, rules: dict[str, str]) -> None:
        self.rng = rng
        self.rules = rules
        self.filled: dict[str, str] = {}

    def tell(self, text: str) -> str:
        while "[" in text:  # once more for every level of nesting, the innermost first
            text = re.sub(r"\[([^][]*)\]", lambda m: self.rng.choice(m[1].split("|")), text)
        return re.sub(r"\{(\w+)\}", self._fill, text)

    def _fill(self, slot: re.Match[str]) -> str:
        name = slot[1].lower()
        if name not in self.filled:
            self.filled[name] = self._draw(name.rstrip("123"))
        value = self.filled[name]
        return value[:1].upper() + value[1:] if slot[1][0].isupper() else value

    def _draw(self, kind: str) -> str:
        taken = [value for name, value in self.filled.items() if name.rstrip("123") == kind]
        while (value := self.tell(f"[{self.rules[kind]}]")) in taken:
            pass
        return value
