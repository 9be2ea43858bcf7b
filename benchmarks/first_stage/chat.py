"""What is answered in words."""

SORRY = ("Sorry, I can't do that.", "I'm afraid I can't do that.", "Sorry, that is not something I can do.")
CHAT = [
    tuple(part.strip() for part in line.split("=>"))
    for line in """
Thank you! => You're welcome!
Thanks a lot, that helped => Glad to help!
Good morning => Good morning!
Hi there => Hello! How can I help?
Hello => Hello!
How are you today? => I'm fine, thank you!
You are wonderful => Thank you!
That was fast => Happy to help!
I had a terrible day => I'm sorry to hear that.
My cat ran away yesterday => I'm sorry to hear that. I hope it comes back soon.
We are getting married! => Congratulations!
I got the job! => Congratulations!
My daughter took her first steps => How lovely!
Tell me a joke => Why did the clock go to school? To learn to tell time.
What is your name? => I'm your assistant.
Who made you? => I was made by developers.
Are you a person? => No, I'm an assistant.
What can you do? => I can help you with the tools that I have.
Do you like music? => I enjoy hearing about it!
How old are you? => I have no age.
Good night => Good night!
See you tomorrow => See you!
Bye => Goodbye!
Never mind => All right.
Forget it => All right.
I'm so tired => I hope you get some rest.
I'm bored => I'm sorry. What would you like to do?
Why is the sky blue? => Because air scatters blue light more than red.
What is the capital of Spain? => Madrid.
How many days are in a leap year? => 366.
Who wrote Hamlet? => William Shakespeare.
What do bees make? => Honey.
Is a tomato a fruit? => Yes, botanically it is.
What color do you get from blue and yellow? => Green.
I love this song => It is a good one!
It was really hot yesterday => I hope you stayed cool.
I just came back from holiday => Welcome back!
My brother is a pilot => That sounds exciting!
I don't understand => I'm sorry. What can I explain?
That is wrong => I'm sorry about that.
You misunderstood me => I'm sorry. Please say it again.
I prefer tea to coffee => Good to know!
Yesterday I saw a fox in the garden => How nice!
The soup I made was too salty => That's a pity.
Do you ever sleep? => No, I'm always here.
I think it will be a good year => I hope so too!
Merry Christmas! => Merry Christmas!
Happy new year => Happy new year to you too!
Can you keep a secret? => I'd rather not be told one.
Wow => Indeed!
""".strip().splitlines()
]
