package gorm

import (
	"errors"
	"time"

	"gorm.io/gorm"
)

// Company, User and the rest use every kind of association that the mapper has.
type Company struct {
	ID    uint
	Name  string `gorm:"uniqueIndex;size:100;not null"`
	Users []User // has many
}

type Profile struct {
	ID     uint
	UserID *uint `gorm:"index"`
	Bio    string
}

type Tag struct {
	Name  string `gorm:"primaryKey"`
	Users []User `gorm:"many2many:user_tags"`
}

type Note struct {
	ID        uint
	Text      string
	OwnerID   uint
	OwnerType string // polymorphic
}

type Address struct {
	Street string
	City   string `gorm:"index"`
}

type User struct {
	gorm.Model
	Name      string            `gorm:"index:by_name_age,priority:1;check:name <> ''"`
	Age       int               `gorm:"index:by_name_age,priority:2;default:18"`
	Mail      *string           `gorm:"unique"`
	Balance   int64             `gorm:"not null;default:0"`
	Birthday  *time.Time        `gorm:"type:datetime"`
	Settings  map[string]string `gorm:"serializer:json"`
	Secret    []byte
	Address   Address `gorm:"embedded;embeddedPrefix:home_"`
	Code      string  `gorm:"->;type:text GENERATED ALWAYS AS (upper(name)) VIRTUAL"`
	Hooked    string
	CompanyID *uint
	Company   *Company
	ManagerID *uint
	Manager   *User
	Team      []User `gorm:"foreignKey:ManagerID"`
	Profile   *Profile
	Tags      []Tag  `gorm:"many2many:user_tags"`
	Friends   []User `gorm:"many2many:user_friends"`
	Notes     []Note `gorm:"polymorphic:Owner"`
}

// Log is written by hooks and never by a scenario.
type Log struct {
	ID   uint
	What string
}

// errRefused is what a hook gives for a name that it does not like.
var errRefused = errors.New("refused by a hook")

func (u *User) BeforeCreate(tx *gorm.DB) error {
	if u.Name == "refused" {
		return errRefused
	}
	u.Hooked = "created as " + u.Name
	return nil
}

func (u *User) AfterCreate(tx *gorm.DB) error {
	return tx.Create(&Log{What: "created " + u.Name}).Error
}

func (u *User) BeforeUpdate(tx *gorm.DB) error {
	if tx.Statement.Changed("Age") {
		tx.Statement.SetColumn("Hooked", "age changed")
	}
	return nil
}

func (u *User) AfterDelete(tx *gorm.DB) error {
	return tx.Create(&Log{What: "deleted"}).Error
}

// allModels in the order in which their tables are made.
var allModels = []any{&Company{}, &User{}, &Profile{}, &Tag{}, &Note{}, &Log{}}
